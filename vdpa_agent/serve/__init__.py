"""Read-only views of the snapshots, by gRPC and HTTP."""
