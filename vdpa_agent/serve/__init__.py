"""Read-only views of the snapshots: gRPC services and their listener."""
