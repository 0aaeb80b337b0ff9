"""What `ray-sr bench` measures: this project beside the way others do the same, in turns in one process."""
