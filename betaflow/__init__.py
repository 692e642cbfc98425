"""betaflow: DPO against RLHF-PPO, end to end, in numbers a reader can trust."""
