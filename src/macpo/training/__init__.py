"""Training: one loop for SFT and DPO+SFT, and the objectives that it optimises."""
