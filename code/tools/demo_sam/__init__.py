"""Training of the small SAM that the demo ships (checkpoints/sam_demo.pth)."""
