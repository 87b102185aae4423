// Package gopeer has what the Go servers share: the command line of the other peers, the listener, the body.
package gopeer

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"flag"
	"fmt"
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

func countCpus(list string) int {
	count := 0
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
		count += last - first + 1
	}
	return count
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
		runtime.GOMAXPROCS(countCpus(*cpus))
	}
	if *useTLS {
		pair, err := tls.LoadX509KeyPair(*cert, *key)
		if err != nil {
			Die(err)
		}
		opt.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: !onOff("tickets", *tickets)}
	}
	return opt
}

// Open listens, says so on standard output, and ends the process with status 0 on SIGINT and SIGTERM.
func (opt *Options) Open() net.Listener {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			if opt.DeferAccept > 0 {
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
