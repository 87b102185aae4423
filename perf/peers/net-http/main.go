// peer-net-http: Go's own HTTP server.
package main

import (
	"io"
	"log"
	"net/http"
	"strconv"
	"time"

	"../gopeer"
)

func main() {
	opt := gopeer.Parse()
	connection := []string{"keep-alive"}
	if !opt.KeepAlive {
		connection = []string{"close"}
	}
	plain, server := []string{"text/plain"}, []string{"peer-net-http"}
	length := []string{strconv.Itoa(len(opt.Body()))}
	handler := func(w http.ResponseWriter, _ *http.Request) {
		if opt.Sleep > 0 {
			time.Sleep(opt.Sleep)
		}
		// Ready slices spare the allocation that Header().Set makes.
		header := w.Header()
		header["Server"], header["Connection"], header["Content-Type"] = server, connection, plain
		header["Content-Length"] = length
		w.Write(opt.Body())
	}
	listener := opt.Open()
	s := &http.Server{Handler: http.HandlerFunc(handler), TLSConfig: opt.TLS,
		ErrorLog: log.New(io.Discard, "", 0)} // clients that go are no news
	s.SetKeepAlivesEnabled(opt.KeepAlive)
	if opt.TLS != nil {
		s.TLSConfig.NextProtos = []string{"http/1.1"}
		gopeer.Die(s.ServeTLS(listener, "", ""))
	}
	gopeer.Die(s.Serve(listener))
}
