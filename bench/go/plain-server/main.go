// Command plain-server answers GetSocketpath from a mapping file as a plain Go program would: read once, a map, a log
// line for each request.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"vdpa-agent/tests/interop/vdpadpdkpb"
)

type server struct {
	vdpadpdkpb.UnimplementedVdpaDpdkServer
	sockets map[string]string
}

func (s *server) GetSocketpath(_ context.Context, request *vdpadpdkpb.GetSocketpathRequest) (*vdpadpdkpb.GetSocketpathResponse, error) {
	socket := s.sockets[request.GetPciAddress()]
	log.Printf("device %s socket %s", request.GetPciAddress(), socket)
	return &vdpadpdkpb.GetSocketpathResponse{Socketpath: socket}, nil
}

func main() {
	listen := flag.String("listen", "", "`path` of the socket to answer on")
	list := flag.String("list", "", "`path` of the mapping file")
	flag.Parse()
	if err := serve(*listen, *list); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, list string) error {
	sockets, err := read(list)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	answering := grpc.NewServer()
	vdpadpdkpb.RegisterVdpaDpdkServer(answering, &server{sockets: sockets})
	grpc_health_v1.RegisterHealthServer(answering, health.NewServer())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		answering.Stop()
	}()
	return answering.Serve(listener)
}

func read(path string) (map[string]string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var entries []struct {
		PciAddress string `json:"pciAddress"`
		Socketpath string `json:"socketpath"`
	}
	if err := json.Unmarshal(content, &entries); err != nil {
		return nil, err
	}
	sockets := make(map[string]string, len(entries))
	for _, entry := range entries {
		sockets[entry.PciAddress] = entry.Socketpath
	}
	return sockets, nil
}
