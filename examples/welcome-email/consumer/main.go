// The consumer outside of the database: sends a welcome e-mail for each users.created.
//
//	BROKER=kafka|nats|rabbitmq BROKER_URL=... SMTP=host:port consumer [-crash MOMENT]
//
// PostgreSQL is found by PGHOST and the like. With -crash it kills itself at a moment
// of its first message: before-send, after-send (the mail server has accepted, nothing
// is committed), after-commit (the broker has not been told).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/smtp"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// A message of any of the brokers. Exactly one of ack and nak ends it.
type message struct {
	headers propagation.MapCarrier
	payload []byte
	ack     func(context.Context) error
	nak     func(context.Context) error // to be had again, a little later
}

type source interface {
	next(context.Context) (*message, error)
	close()
}

type user struct {
	ID    int64  `json:"id"`
	Name  string `json:"name"`
	Email string `json:"email"`
}

type consumer struct {
	db     *pgxpool.Pool
	smtp   string
	tracer oteltrace.Tracer
	crash  string
}

const (
	backoff = 200 * time.Millisecond
	ackWait = 2 * time.Second // a consumer that is silent for so long has died
)

func main() {
	crash := flag.String("crash", "", "moment: before-send, after-send, after-commit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	// each span is written when it ends: whoever is killed has no time to flush
	exporter, err := stdouttrace.New()
	check(err)
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	db, err := pgxpool.New(ctx, "")
	check(err)
	defer db.Close()
	source, err := connect(ctx, os.Getenv("BROKER"), os.Getenv("BROKER_URL"))
	check(err)
	defer source.close()

	c := &consumer{db: db, smtp: os.Getenv("SMTP"), tracer: provider.Tracer("welcome-email"), crash: *crash}
	for ctx.Err() == nil {
		m, err := source.next(ctx)
		if ctx.Err() != nil {
			return
		}
		check(err)
		c.handle(ctx, m)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func connect(ctx context.Context, broker, url string) (source, error) {
	switch broker {
	case "kafka":
		return newKafka(url)
	case "nats":
		return newNats(ctx, url)
	case "rabbitmq":
		return newRabbitmq(url)
	}
	return nil, fmt.Errorf("unknown BROKER: %q", broker)
}

// handle has the message's effect and tells the broker: ack once PostgreSQL has committed, for
// what is received again is then known by its mark; nak when anything failed.
func (c *consumer) handle(ctx context.Context, m *message) {
	ctx = propagation.TraceContext{}.Extract(ctx, m.headers)
	ctx, span := c.tracer.Start(ctx, "send welcome e-mail", oteltrace.WithSpanKind(oteltrace.SpanKindConsumer))
	defer span.End()

	err := c.welcome(ctx, m)
	if err != nil {
		span.RecordError(err)
		log.Print(err)
		err = m.nak(ctx)
	} else {
		c.crashAt("after-commit")
		err = m.ack(ctx)
	}
	if err != nil { // it comes again, which does no harm
		log.Print(err)
	}
}

func (c *consumer) welcome(ctx context.Context, m *message) error {
	var u user
	if err := json.Unmarshal(m.payload, &u); err != nil {
		return err
	}
	key := fmt.Sprintf("email:welcome:%d", u.ID)
	return pgx.BeginFunc(ctx, c.db, func(tx pgx.Tx) error {
		var fresh bool
		err := tx.QueryRow(ctx, "SELECT inbox.accept('welcome', $1)", key).Scan(&fresh)
		if err != nil || !fresh {
			return err
		}
		carrier := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, carrier)
		_, err = tx.Exec(ctx, "INSERT INTO welcome_emails (user_id, traceparent) VALUES ($1, $2)",
			u.ID, carrier["traceparent"])
		if err != nil {
			return err
		}
		c.crashAt("before-send")
		if err := c.send(key, u, carrier["traceparent"]); err != nil {
			return err
		}
		// the one moment that no system can close: see README.md
		c.crashAt("after-send")
		return nil
	})
}

// send makes the key the Message-ID, so that the receiving side can tell what it has.
func (c *consumer) send(key string, u user, traceparent string) error {
	if strings.ContainsAny(u.Name+u.Email, "\r\n") {
		return errors.New("a name or an address with a line break")
	}
	text := fmt.Sprintf("Message-ID: <%s@shop.example>\r\nFrom: hello@shop.example\r\nTo: %s\r\n"+
		"Subject: Welcome, %s\r\ntraceparent: %s\r\n\r\nIt is good to have you here.\r\n",
		strings.ReplaceAll(key, ":", "."), u.Email, u.Name, traceparent)
	return smtp.SendMail(c.smtp, nil, "hello@shop.example", []string{u.Email}, []byte(text))
}

// crashAt is what `kill -9` would do at that moment.
func (c *consumer) crashAt(moment string) {
	if c.crash == moment {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
