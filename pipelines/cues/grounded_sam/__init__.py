"""Instance masks of what can move, from open-vocabulary detection and promptable segmentation (Grounded-SAM, SAM 3)."""
