"""UniMatch's optical flow (GMFlow), after Xu et al., "Unifying Flow, Stereo and Depth Estimation", TPAMI 2023."""
