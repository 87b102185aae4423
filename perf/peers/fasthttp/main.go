// peer-fasthttp: github.com/valyala/fasthttp with the settings that its README advises for short responses.
package main

import (
	"crypto/tls"
	"net"
	"time"

	"../gopeer"
	"github.com/valyala/fasthttp"
)

// Clients that go are no news.
type silent struct{}

func (silent) Printf(string, ...interface{}) {}

func main() {
	opt := gopeer.Parse()
	handler := func(ctx *fasthttp.RequestCtx) {
		if opt.Sleep > 0 {
			time.Sleep(opt.Sleep)
		}
		if opt.KeepAlive {
			ctx.Response.Header.Set("Connection", "keep-alive")
		} else {
			ctx.SetConnectionClose()
		}
		ctx.SetContentType("text/plain")
		ctx.Response.SetBodyRaw(opt.Body()) // no copy
	}
	var listener net.Listener = opt.Open()
	if opt.TLS != nil {
		listener = tls.NewListener(listener, opt.TLS)
	}
	s := &fasthttp.Server{Handler: handler, Name: "peer-fasthttp", DisableKeepalive: !opt.KeepAlive,
		Concurrency: 1 << 20, Logger: silent{}}
	gopeer.Die(s.Serve(listener))
}
