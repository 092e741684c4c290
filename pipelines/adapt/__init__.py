"""Fine-tuning the flow network without labels (Jonschkowski et al., "What matters in unsupervised optical flow")."""
