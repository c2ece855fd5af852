"""What every stage stands on: files, seeds, device, logging, state."""
