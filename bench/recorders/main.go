// Makes COUNT unary calls with grpc-go on one connection, 50 at a time; the paths take turns.
// Run by `python -m bench.capture`: PROGRAM TARGET COUNT PATH...
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	channel, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	paths := os.Args[3:]
	var calls sync.WaitGroup
	room := make(chan struct{}, 50)
	for number := range count {
		room <- struct{}{}
		calls.Go(func() {
			call(channel, paths[number%len(paths)])
			<-room
		})
	}
	calls.Wait()
	fmt.Printf("grpc-go %s, %s", grpc.Version, runtime.Version())
}

func call(channel *grpc.ClientConn, path string) {
	limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := channel.Invoke(limit, path, &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		log.Fatal(err)
	}
}
