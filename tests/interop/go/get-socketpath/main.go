// Command get-socketpath asks an agent for the sockets of virtual functions, as a client on a current grpc-go does.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"vdpa-agent/tests/interop/vdpadpdkpb"
)

func main() {
	socket := flag.String("socket", "/var/run/vdpa/vdpa.sock", "`path` of the agent's socket")
	authority := flag.String("authority", "", "what to send as :authority; empty: what grpc-go sends by itself")
	timeout := flag.Duration("timeout", 10*time.Second, "how long each answer may take, the dial included")
	flag.Parse()
	if err := ask(*socket, *authority, *timeout, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", status.Code(err), err)
		os.Exit(1)
	}
}

// ask prints one line per address: the address, a tab, the path of its socket. All go over one connection.
func ask(socket, authority string, timeout time.Duration, addresses []string) error {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if authority != "" {
		options = append(options, grpc.WithAuthority(authority))
	}
	connection, err := grpc.NewClient("unix:"+socket, options...)
	if err != nil {
		return err
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
