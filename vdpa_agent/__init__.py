"""The node agent for vDPA virtual functions: supervises the DPDK daemon and serves its sockets by gRPC."""

__version__ = "0.1.0"
