"""Fast starts of worker processes on local clusters: one preloaded process forks the workers that raylets request."""
