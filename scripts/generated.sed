# What grpclib generates, for the server here: its bases take this project's streams, and only who makes a stub imports a client.
/^import grpclib\.client$/d
s/^    import grpclib\.server$/    import grpclib.client\n\n    from vdpa_agent.rpc.stream import Stream/
s/grpclib\.server\.Stream/Stream/g
s/channel: grpclib\.client\.Channel) -> None:$/channel: "grpclib.client.Channel") -> None:\n        import grpclib.client\n/
