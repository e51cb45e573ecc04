"""What loops are written in: vectors, threads, and the compiler's cache."""
