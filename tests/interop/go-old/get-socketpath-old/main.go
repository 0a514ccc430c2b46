// Command get-socketpath-old asks an agent for the sockets of virtual functions by the grpc-go of the clients in the
// field: the target is the socket's bare path, which that grpc-go also sends as :authority.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"vdpa-agent/tests/interop/go-old/vdpadpdkpb"
)

func main() {
	socket := flag.String("socket", "/var/run/vdpa/vdpa.sock", "`path` of the agent's socket")
	authority := flag.String("authority", "", "the target to name, sent as :authority; empty: the socket's path")
	timeout := flag.Duration("timeout", 10*time.Second, "how long the dial and each answer may take")
	flag.Parse()
	target := *authority
	if target == "" {
		target = *socket
	}
	if err := ask(*socket, target, *timeout, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", status.Code(err), err)
		os.Exit(1)
	}
}

// ask prints one line per address: the address, a tab, the path of its socket. All go over one connection.
func ask(socket, target string, timeout time.Duration, addresses []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	connection, err := grpc.DialContext(ctx, target, grpc.WithInsecure(), grpc.WithBlock(), grpc.WithContextDialer(dial))
	if err != nil {
		return status.FromContextError(err).Err()
	}
	defer connection.Close()
	client := vdpadpdkpb.NewVdpaDpdkClient(connection)
	for _, address := range addresses {
		path, err := askOne(client, address, timeout)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", address, path)
	}
	return nil
}

func askOne(client vdpadpdkpb.VdpaDpdkClient, address string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	reply, err := client.GetSocketpath(ctx, &vdpadpdkpb.GetSocketpathRequest{PciAddress: address})
	return reply.GetSocketpath(), err
}
