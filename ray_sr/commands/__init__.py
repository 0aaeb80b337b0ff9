"""The commands of `ray-sr`, one module a group. Heavy imports happen inside them, so that --help is quick."""
