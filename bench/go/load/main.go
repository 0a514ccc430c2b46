// Command load calls a server as clients do, and prints what it measured as one line of JSON.
//
// usage: load [OPTION]... cold|warm|streams|storm|first
//
//	cold     -calls times: connect, call once, close
//	warm     -calls calls in a row on one connection
//	streams  -streams callers on one connection, for -seconds, or until -calls in all if that is above 0
//	storm    -calls connections at once, each: connect, call once, close
//	first    tries to connect until somebody answers, then prints
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vdpa-agent/tests/interop/vdpadpdkpb"
)

const (
	patience = 110 * time.Second
	// As long as a request and its answer are with their frames, more or less.
	echoBytes = 128
)

// target is a server, of gRPC or of bytes.
type target struct {
	socket, address, expect string
	echo                    bool
}

// session is one connection to it.
type session interface {
	call(ctx context.Context) error
	io.Closer
}

type result struct {
	LatenciesUs []float64 `json:"latencies_us,omitempty"`
	Calls       int64     `json:"calls"`
	Failed      int64     `json:"failed"`
	Seconds     float64   `json:"seconds"`
	Reason      string    `json:"reason,omitempty"`
}

func main() {
	var to target
	flag.StringVar(&to.socket, "socket", "", "`path` of the server's socket")
	flag.StringVar(&to.address, "address", "0000:82:00.2", "the device to ask for")
	flag.StringVar(&to.expect, "expect", "", "what a right answer is")
	flag.BoolVar(&to.echo, "echo", false, "the server sends back bytes, and knows no gRPC")
	calls := flag.Int64("calls", 0, "how many")
	streams := flag.Int("streams", 1, "callers at the same time")
	seconds := flag.Float64("seconds", 1, "for how long")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	run := map[string]func() (result, error){
		"cold":    func() (result, error) { return cold(ctx, to, *calls) },
		"warm":    func() (result, error) { return warm(ctx, to, *calls) },
		"streams": func() (result, error) { return many(ctx, to, *streams, *calls, *seconds) },
		"storm":   func() (result, error) { return storm(ctx, to, *calls) },
		"first":   func() (result, error) { return first(ctx, to) },
	}[flag.Arg(0)]
	if run == nil || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: load [OPTION]... cold|warm|streams|storm|first")
		os.Exit(2)
	}
	began := time.Now()
	measured, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	measured.Seconds = time.Since(began).Seconds()
	if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func cold(ctx context.Context, to target, calls int64) (result, error) {
	measured := result{Calls: calls}
	for range calls {
		began := time.Now()
		if err := once(ctx, to); err != nil {
			return measured, err
		}
		measured.LatenciesUs = append(measured.LatenciesUs, us(began))
	}
	return measured, nil
}

func warm(ctx context.Context, to target, calls int64) (result, error) {
	measured := result{Calls: calls}
	open, err := to.open()
	if err != nil {
		return measured, err
	}
	defer open.Close()
	// The first call connects.
	if err := open.call(ctx); err != nil {
		return measured, err
	}
	for range calls {
		began := time.Now()
		if err := open.call(ctx); err != nil {
			return measured, err
		}
		measured.LatenciesUs = append(measured.LatenciesUs, us(began))
	}
	return measured, nil
}

func many(ctx context.Context, to target, streams int, most int64, seconds float64) (result, error) {
	open, err := to.open()
	if err != nil {
		return result{}, err
	}
	defer open.Close()
	var done atomic.Int64
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	more := func() bool {
		if most > 0 {
			return done.Add(1) <= most
		}
		done.Add(1)
		return time.Now().Before(end)
	}
	failures := make(chan error, streams)
	var callers sync.WaitGroup
	for range streams {
		callers.Go(func() {
			for more() {
				if err := open.call(ctx); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	callers.Wait()
	// Each caller counted one call that it did not make.
	measured := result{Calls: done.Load() - int64(streams)}
	select {
	case err := <-failures:
		return measured, err
	default:
		return measured, nil
	}
}

func storm(ctx context.Context, to target, calls int64) (result, error) {
	latencies := make([]float64, calls)
	var failed atomic.Int64
	var reason atomic.Value
	var callers sync.WaitGroup
	begin := make(chan struct{})
	for number := range calls {
		callers.Go(func() {
			<-begin
			began := time.Now()
			if err := once(ctx, to); err != nil {
				failed.Add(1)
				reason.Store(err.Error())
			}
			latencies[number] = us(began)
		})
	}
	close(begin)
	callers.Wait()
	why, _ := reason.Load().(string)
	return result{Calls: calls, Failed: failed.Load(), LatenciesUs: latencies, Reason: why}, nil
}

func first(ctx context.Context, to target) (result, error) {
	fmt.Println("ready")
	for ctx.Err() == nil {
		connection, err := net.Dial("unix", to.socket)
		if err != nil {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		connection.Close()
		return result{Calls: 1}, once(ctx, to)
	}
	return result{}, ctx.Err()
}

func once(ctx context.Context, to target) error {
	open, err := to.open()
	if err != nil {
		return err
	}
	return errors.Join(open.call(ctx), open.Close())
}

func us(began time.Time) float64 {
	return float64(time.Since(began).Nanoseconds()) / 1000
}

func (to target) open() (session, error) {
	if to.echo {
		connection, err := net.Dial("unix", to.socket)
		if err != nil {
			return nil, err
		}
		return &bytesSession{Conn: connection}, nil
	}
	connection, err := grpc.NewClient("unix:"+to.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &grpcSession{connection, vdpadpdkpb.NewVdpaDpdkClient(connection), to}, nil
}

type grpcSession struct {
	*grpc.ClientConn
	client vdpadpdkpb.VdpaDpdkClient
	to     target
}

func (s *grpcSession) call(ctx context.Context) error {
	request := &vdpadpdkpb.GetSocketpathRequest{PciAddress: s.to.address}
	reply, err := s.client.GetSocketpath(ctx, request, grpc.WaitForReady(true))
	if err == nil && reply.GetSocketpath() != s.to.expect {
		err = fmt.Errorf("%s was answered with %q, not %q", s.to.address, reply.GetSocketpath(), s.to.expect)
	}
	return err
}

type bytesSession struct {
	net.Conn
	buffer [echoBytes]byte
}

func (s *bytesSession) call(context.Context) error {
	if _, err := s.Write(s.buffer[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(s, s.buffer[:])
	return err
}
