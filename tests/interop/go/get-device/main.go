// Command get-device asks a vdpa-agent for all that is known of one device, and tells an error with its ErrorInfo.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "vdpa-agent/tests/interop/devicepb"
)

func main() {
	socket := flag.String("socket", "/var/run/vdpa/vdpa.sock", "the agent's unix socket")
	timeout := flag.Duration("timeout", 10*time.Second, "how long the answer may take")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: get-device [-socket PATH] ADDRESS")
		os.Exit(2)
	}
	if err := get(*socket, *timeout, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func get(socket string, timeout time.Duration, address string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	reply, err := pb.NewDeviceServiceClient(conn).GetDevice(ctx, &pb.GetDeviceRequest{PciAddress: address})
	if err != nil {
		refused := status.Convert(err)
		for _, detail := range refused.Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok {
				return fmt.Errorf("%s %s/%s: %s", refused.Code(), info.Domain, info.Reason, refused.Message())
			}
		}
		return err
	}
	device := reply.GetDevice()
	fmt.Printf("%s\t%s\t%s\n", device.GetPciAddress(), device.GetSocketPath(), device.GetState())
	return nil
}
