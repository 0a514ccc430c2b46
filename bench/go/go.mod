module vdpa-agent/bench

go 1.26.0

require (
	google.golang.org/grpc v1.85.0
	vdpa-agent/tests/interop v0.0.0
)

require (
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260825221802-da73d73af1c5 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace vdpa-agent/tests/interop => ../../tests/interop/go
