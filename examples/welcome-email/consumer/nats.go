package main

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
)

// A durable pull consumer; one message at a time is out, so that their order stays.
type natsSource struct {
	conn     *nats.Conn
	messages jetstream.MessagesContext
}

func newNats(ctx context.Context, url string) (source, error) {
	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	stream, err := js.StreamNameBySubject(ctx, "users.created")
	if err != nil {
		return nil, err
	}
	durable, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "welcome-email", FilterSubject: "users.created",
		AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1, AckWait: ackWait})
	if err != nil {
		return nil, err
	}
	// a server that is away is waited for
	messages, err := durable.Messages(jetstream.PullMaxMessages(1), jetstream.WithMessagesErrOnMissingHeartbeat(false))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, messages.Stop)
	return &natsSource{conn: conn, messages: messages}, nil
}

func (s *natsSource) next(ctx context.Context) (*message, error) {
	m, err := s.messages.Next()
	if err != nil {
		return nil, err
	}
	headers := propagation.MapCarrier{}
	for name, values := range m.Headers() {
		headers[name] = values[0]
	}
	return &message{
		headers: headers,
		payload: m.Data(),
		ack:     func(ctx context.Context) error { return m.DoubleAck(ctx) },
		nak:     func(ctx context.Context) error { return m.NakWithDelay(backoff) },
	}, nil
}

func (s *natsSource) close() {
	s.messages.Stop()
	s.conn.Close()
}
