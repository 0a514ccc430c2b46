"""The gRPC server: listener, HTTP/2 connections, calls, limits, peers; it knows no service."""
