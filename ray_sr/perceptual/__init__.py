"""What pictures look like to a network: VGG feature maps, LPIPS, DISTS and BRISQUE."""
