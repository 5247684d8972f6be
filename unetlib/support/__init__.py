"""What the other sub-packages stand on: files, caches, processes, memory."""
