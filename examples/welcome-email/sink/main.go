// A mail server that delivers into files, to count e-mails with.
//
//	sink -listen 127.0.0.1:2525 -dir DIR [-busy N]
//
// DIR/accepted.log gets a line for each e-mail that was accepted, before the client is told
// so: Message-ID, recipient, traceparent. DIR/mailbox.log gets those whose Message-ID has
// not been seen, as mail servers that drop duplicates do it. The first N e-mails to
// addresses that begin with "busy" are refused for now (451).
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

type sink struct {
	mu                sync.Mutex
	accepted, mailbox *os.File
	seen              map[string]bool
	busy              int
}

func main() {
	listen := flag.String("listen", "127.0.0.1:2525", "address")
	dir := flag.String("dir", ".", "where the logs are")
	busy := flag.Int("busy", 0, "how many e-mails to busy... are refused for now")
	flag.Parse()

	s := &sink{seen: map[string]bool{}, busy: *busy}
	s.accepted = open(filepath.Join(*dir, "accepted.log"))
	s.mailbox = open(filepath.Join(*dir, "mailbox.log"))
	scanner := bufio.NewScanner(s.mailbox)
	for scanner.Scan() {
		id, _, _ := strings.Cut(scanner.Text(), "\t")
		s.seen[id] = true
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go s.serve(conn)
	}
}

func open(name string) *os.File {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	return f
}

// serve is one connection: as much of SMTP as a client needs.
func (s *sink) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	say := func(format string, args ...any) { fmt.Fprintf(conn, format+"\r\n", args...) }
	recipient := ""

	say("220 sink")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		switch verb := strings.ToUpper(strings.SplitN(line, " ", 2)[0]); verb {
		case "EHLO", "HELO", "MAIL", "RSET", "NOOP":
			say("250 ok")
		case "RCPT":
			_, address, _ := strings.Cut(line, "<")
			recipient, _, _ = strings.Cut(address, ">")
			say("250 ok")
		case "DATA":
			say("354 go on")
			text, err := readData(in)
			if err != nil {
				return
			}
			say("%s", s.take(recipient, text))
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 unknown: %s", verb)
		}
	}
}

func readData(in *bufio.Reader) (string, error) {
	var text strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if strings.TrimRight(line, "\r\n") == "." {
			return text.String(), nil
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
}

// take accepts an e-mail, or not, and gives the answer.
func (s *sink) take(recipient, text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(recipient, "busy") && s.busy > 0 {
		s.busy--
		return "451 busy, try again"
	}
	message, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		return "554 no e-mail: " + err.Error()
	}
	id := message.Header.Get("Message-Id")
	line := fmt.Sprintf("%s\t%s\t%s\n", id, recipient, message.Header.Get("Traceparent"))
	if _, err := s.accepted.WriteString(line); err != nil {
		return "451 " + err.Error()
	}
	if !s.seen[id] {
		s.seen[id] = true
		s.mailbox.WriteString(line)
	}
	return "250 accepted"
}
