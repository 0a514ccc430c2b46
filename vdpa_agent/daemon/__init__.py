"""The child: its command line, its process, its control channel, its output, its supervision."""
