package gopeer

import (
	"crypto/rand"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"
)

// Tells a process that it is one of several instances; its value makes the key of the session tickets that they share.
const instanceVariable = "PEER_INSTANCE"

const soReusePort = 15 // asm-generic/socket.h; package syscall does not have it

// runInstances starts this program once for each CPU, as fasthttp's README advises for multi-core systems, and does not
// return. An instance inherits the CPU of the thread that starts it.
func runInstances(cpus []int) {
	runtime.LockOSThread() // affinity and the instances' death signal belong to the thread
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		Die(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ended := make(chan error, len(cpus))
	gates := []io.Closer{}
	instances := []*exec.Cmd{}
	for _, cpu := range cpus {
		pinThread(cpu)
		instance := exec.Command("/proc/self/exe", os.Args[1:]...)
		instance.Args[0] = os.Args[0]
		instance.Env = append(os.Environ(), instanceVariable+"="+hex.EncodeToString(secret))
		instance.Stdout, instance.Stderr = os.Stdout, os.Stderr
		instance.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		gate, err := instance.StdinPipe()
		if err == nil {
			err = instance.Start()
		}
		if err != nil {
			Die(err)
		}
		gates, instances = append(gates, gate), append(instances, instance)
		go func() { ended <- instance.Wait() }()
	}
	for _, gate := range gates {
		gate.Close()
	}
	status := 0
	select {
	case <-signals:
	case <-ended: // it has said why
		status = 1
	}
	for _, instance := range instances {
		instance.Process.Signal(syscall.SIGKILL)
	}
	os.Exit(status)
}

func pinThread(cpu int) {
	var set [128]byte // CPU_SETSIZE bits
	set[cpu/8] = 1 << (cpu % 8)
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, uintptr(len(set)), uintptr(unsafe.Pointer(&set)))
	if errno != 0 {
		Die(errno)
	}
}
