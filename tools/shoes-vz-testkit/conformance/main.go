// Command conformance is a plugin host built on the real github.com/hashicorp/go-plugin. It starts shoes-vz-client the
// way myshoes does (a new process for each call, killed afterwards), calls it, and prints what happened as JSON.
//
// Exit codes: 0 every call succeeded, 1 one did not, 2 used wrongly.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

type labels []string

func (l *labels) String() string         { return fmt.Sprint(*l) }
func (l *labels) Set(value string) error { *l = append(*l, value); return nil }

// failure is an error as the plugin's caller sees it.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// result is what happened in one plugin process.
type result struct {
	CloudID      string   `json:"cloud_id,omitempty"`
	ShoesType    string   `json:"shoes_type,omitempty"`
	IPAddress    string   `json:"ip_address,omitempty"`
	ResourceType string   `json:"resource_type,omitempty"`
	Error        *failure `json:"error,omitempty"`
	// Spawn to handshake line read.
	HandshakeMS float64 `json:"handshake_ms"`
	CallMS      float64 `json:"call_ms"`
	// Far below 2000: the plugin ended by itself. At 2000 go-plugin gave up and killed it.
	KillMS        float64 `json:"kill_ms"`
	PID           int     `json:"pid"`
	Exited        bool    `json:"exited"`
	ProcessGone   bool    `json:"process_gone"`
	SocketRemoved bool    `json:"socket_removed"`
}

// shoes dispenses the bare connection; the messages are this program's own.
type shoes struct{ plugin.NetRPCUnsupportedPlugin }

func (shoes) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (shoes) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

type host struct {
	file    protoreflect.FileDescriptor
	path    string
	env     []string
	timeout time.Duration
	logger  hclog.Logger
}

func main() {
	var labels labels
	path := flag.String("plugin", "", "path of shoes-vz-client")
	server := flag.String("server", "", "SHOESVZ_SERVER_ADDR for the plugin; empty: not set")
	name := flag.String("add-name", "", "runner name for AddInstance")
	script := flag.String("script", "", "file with AddInstance's setup script")
	resourceType := flag.String("resource-type", "nano", "resource type, as myshoes writes it, or \"unknown\", or a number")
	cloudID := flag.String("delete", "", "cloud id for DeleteInstance; \"added\": the one AddInstance gave")
	timeout := flag.Duration("timeout", 5*time.Minute, "deadline of each call")
	verbose := flag.Bool("verbose", false, "show go-plugin's own log on stderr")
	hostLog := flag.String("host-log", "", "file for the host's log, with what go-plugin takes from the plugin's, as JSON lines")
	logFilter := flag.String("plugin-log", "", "SHOESVZ_LOG for the plugin; empty: not set")
	flag.Var(&labels, "label", "a label; may be given again")
	flag.Parse()

	level := hclog.Off
	if *verbose {
		level = hclog.Trace
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: "plugin", Level: level, Output: os.Stderr})

	if *hostLog != "" {
		file, err := os.Create(*hostLog)
		if err != nil {
			usage(err.Error())
		}
		defer file.Close()
		logger = hclog.New(&hclog.LoggerOptions{Name: "plugin", Level: hclog.Trace, Output: file, JSONFormat: true})
	}

	number := slices.Index(resourceTypes, *resourceType)
	if n, err := strconv.ParseInt(*resourceType, 10, 32); err == nil {
		number = int(n)
	}
	switch {
	case *path == "" || (*name == "" && *cloudID == "") || flag.NArg() > 0:
		usage("give --plugin, and --add-name or --delete or both")
	case number < 0:
		usage(fmt.Sprintf("unknown --resource-type %q", *resourceType))
	}
	var setup []byte
	if *script != "" {
		var err error
		if setup, err = os.ReadFile(*script); err != nil {
			usage(err.Error())
		}
	}
	file, err := schema()
	if err != nil {
		usage(err.Error())
	}
	h := host{file: file, path: *path, timeout: *timeout, logger: logger}
	if *server != "" {
		h.env = append(h.env, "SHOESVZ_SERVER_ADDR="+*server)
	}
	if *logFilter != "" {
		h.env = append(h.env, "SHOESVZ_LOG="+*logFilter)
	}

	results := map[string]result{}
	if *name != "" {
		request := values{
			"runner_name": *name, "setup_script": string(setup),
			"resource_type": int32(number), "labels": []string(labels),
		}
		results["add"] = h.call(addInstance, newMessage(file, "AddInstanceRequest", request), "AddInstanceResponse")
	}
	if *cloudID != "" && (*name == "" || results["add"].Error == nil) {
		if *cloudID == "added" {
			*cloudID = results["add"].CloudID
		}
		request := values{"cloud_id": *cloudID, "labels": []string(labels)}
		results["delete"] = h.call(deleteInstance, newMessage(file, "DeleteInstanceRequest", request), "DeleteInstanceResponse")
	}
	out, err := json.Marshal(results)
	if err != nil {
		usage(err.Error())
	}
	fmt.Println(string(out))
	for _, r := range results {
		if r.Error != nil {
			os.Exit(1)
		}
	}
}

func usage(words string) {
	fmt.Fprintln(os.Stderr, "conformance:", words)
	os.Exit(2)
}

// call starts the plugin, makes one call, and kills it: one round of myshoes' GetClient.
func (h host) call(method string, request *dynamicpb.Message, answerName string) (r result) {
	command := exec.Command(h.path)
	command.Env = h.env
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   "SHOES_PLUGIN_MAGIC_COOKIE",
			MagicCookieValue: "are_you_a_shoes?",
		},
		Plugins:          map[string]plugin.Plugin{"shoes_grpc": shoes{}},
		Cmd:              command,
		Managed:          true,
		Stderr:           os.Stderr,
		SyncStdout:       os.Stdout,
		SyncStderr:       os.Stderr,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           h.logger,
	})

	var socket string
	defer func() {
		started := time.Now()
		client.Kill()
		r.KillMS = ms(started)
		r.Exited = client.Exited()
		// Go reaps the child, so its pid is free once it is gone.
		r.ProcessGone = r.PID != 0 && errors.Is(syscall.Kill(r.PID, 0), syscall.ESRCH)
		_, err := os.Stat(filepath.Dir(socket))
		r.SocketRemoved = socket != "" && errors.Is(err, os.ErrNotExist)
	}()

	started := time.Now()
	addr, err := client.Start()
	r.HandshakeMS = ms(started)
	if err != nil {
		return r.failed("starting the plugin", err)
	}
	socket = addr.String()
	r.PID = client.ReattachConfig().Pid

	protocol, err := client.Client()
	if err != nil {
		return r.failed("connecting to the plugin", err)
	}
	if err := protocol.Ping(); err != nil {
		return r.failed("asking for the plugin's health", err)
	}
	raw, err := protocol.Dispense("shoes_grpc")
	if err != nil {
		return r.failed("dispensing shoes_grpc", err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), h.timeout)
	defer cancel()
	answer := newMessage(h.file, answerName, nil)
	started = time.Now()
	err = raw.(*grpc.ClientConn).Invoke(ctx, method, request, answer)
	r.CallMS = ms(started)
	if err != nil {
		return r.failed("", err)
	}
	if method == addInstance {
		r.CloudID, r.ShoesType = textOf(answer, "cloud_id"), textOf(answer, "shoes_type")
		r.IPAddress, r.ResourceType = textOf(answer, "ip_address"), resourceTypeOf(answer)
	}
	return r
}

func (r result) failed(what string, err error) result {
	if what == "" {
		r.Error = &failure{Code: status.Code(err).String(), Message: status.Convert(err).Message()}
	} else {
		r.Error = &failure{Code: "HOST", Message: fmt.Sprintf("%s: %v", what, err)}
	}
	return r
}

func ms(since time.Time) float64 {
	return float64(time.Since(since).Microseconds()) / 1000
}
