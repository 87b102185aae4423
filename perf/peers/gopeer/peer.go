// Package gopeer has what the Go servers share: the command line of the other peers, the listener, the body.
package gopeer

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options of the command line; the names are those of percore-http.
type Options struct {
	Listen      string
	KeepAlive   bool
	Aes         bool
	Sleep       time.Duration
	DeferAccept int // seconds, 0: off
	TLS         *tls.Config
	body        []byte
}

func badUsage(format string, arguments ...interface{}) {
	fmt.Fprintf(os.Stderr, "%s: %s (see --help)\n", filepath.Base(os.Args[0]), fmt.Sprintf(format, arguments...))
	os.Exit(2)
}

// Die ends the process with status 1.
func Die(err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	os.Exit(1)
}

func onOff(name, value string) bool {
	if value != "on" && value != "off" {
		badUsage("--%s: on or off expected, not '%s'", name, value)
	}
	return value == "on"
}

func parseCpus(list string) []int {
	cpus := []int{}
	for _, item := range strings.Split(list, ",") {
		ends := strings.SplitN(item, "-", 2)
		first, err := strconv.Atoi(ends[0])
		last := first
		if err == nil && len(ends) == 2 {
			last, err = strconv.Atoi(ends[1])
		}
		if err != nil || first < 0 || last < first {
			badUsage("--cpus: a list such as 0-3,8 expected, not '%s'", list)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// Parse reads the command line and sets GOMAXPROCS to the number of CPUs. Go moves its threads as it likes: whoever
// starts the process restricts it to those CPUs.
func Parse() *Options {
	opt := &Options{}
	flag.StringVar(&opt.Listen, "listen", "127.0.0.1:0", "`ADDR:PORT`; port 0 lets the kernel choose")
	body := flag.Int("body", 1024, "length of the body in `bytes`")
	keepAlive := flag.String("keep-alive", "on", "`on|off`: off closes after the response")
	flag.BoolVar(&opt.Aes, "aes128", false, "the body encrypted with AES-128-CBC, behind its initialisation vector")
	sleep := flag.Int("sleep-ms", 0, "wait before the response")
	cpus := flag.String("cpus", "", "`LIST`: GOMAXPROCS is its length (default: what Go finds)")
	flag.IntVar(&opt.DeferAccept, "defer-accept", 0, "TCP_DEFER_ACCEPT in `seconds`")
	flag.String("fin-with-data", "off", "`on|off`: net has no send flags; without effect")
	useTLS := flag.Bool("tls", false, "serve TLS with --cert and --key")
	cert := flag.String("cert", "", "PEM `file`")
	key := flag.String("key", "", "PEM `file`")
	tickets := flag.String("tickets", "on", "`on|off`: off makes every handshake full")
	each := flag.Bool("instance-per-cpu", false, "a process for each CPU of --cpus, pinned, with SO_REUSEPORT")
	flag.Parse()
	if flag.NArg() > 0 {
		badUsage("unexpected argument '%s'", flag.Arg(0))
	}
	if *body < 0 || *body > 1<<30 || *sleep < 0 || opt.DeferAccept < 0 {
		badUsage("a number is out of its range")
	}
	opt.KeepAlive = onOff("keep-alive", *keepAlive)
	opt.Sleep = time.Duration(*sleep) * time.Millisecond
	opt.body = []byte(strings.Repeat("x", *body))
	if *cpus != "" {
		list := parseCpus(*cpus)
		if *each && len(list) > 1 && os.Getenv(instanceVariable) == "" {
			if strings.HasSuffix(opt.Listen, ":0") {
				badUsage("--instance-per-cpu needs a port other than 0")
			}
			runInstances(list)
		}
		runtime.GOMAXPROCS(len(list))
	}
	if *useTLS {
		pair, err := tls.LoadX509KeyPair(*cert, *key)
		if err != nil {
			Die(err)
		}
		opt.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: !onOff("tickets", *tickets)}
		if key := os.Getenv(instanceVariable); key != "" {
			opt.TLS.SetSessionTicketKeys([][32]byte{sha256.Sum256([]byte(key))})
		}
	}
	if os.Getenv(instanceVariable) != "" {
		runtime.GOMAXPROCS(1)
		io.ReadAll(os.Stdin) // until all instances are there, so that all begin to listen at the same time
	}
	return opt
}

// Open listens, says so on standard output, and ends the process with status 0 on SIGINT and SIGTERM.
func (opt *Options) Open() net.Listener {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			if os.Getenv(instanceVariable) != "" {
				failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReusePort, 1)
			}
			if failed == nil && opt.DeferAccept > 0 {
				failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, opt.DeferAccept)
			}
		})
		if err != nil {
			return err
		}
		return failed
	}}
	listener, err := config.Listen(context.Background(), "tcp4", opt.Listen)
	if err != nil {
		Die(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		os.Exit(0)
	}()
	fmt.Printf("listening on %s\n", listener.Addr())
	return listener
}

var key, _ = aes.NewCipher([]byte("0123456789ABCDEF")) // the key schedule, made once

// Body of the next response; made anew for each with --aes128.
func (opt *Options) Body() []byte {
	if !opt.Aes {
		return opt.body
	}
	padding := aes.BlockSize - len(opt.body)%aes.BlockSize
	out := make([]byte, aes.BlockSize+len(opt.body)+padding)
	if _, err := rand.Read(out[:aes.BlockSize]); err != nil {
		Die(err)
	}
	plain := out[aes.BlockSize:]
	copy(plain, opt.body)
	for i := len(opt.body); i < len(plain); i++ {
		plain[i] = byte(padding)
	}
	cipher.NewCBCEncrypter(key, out[:aes.BlockSize]).CryptBlocks(plain, plain)
	return out
}
