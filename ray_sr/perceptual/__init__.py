"""What pictures look like to a network: VGG feature maps, and LPIPS."""
