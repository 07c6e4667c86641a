package main

import (
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/propagation"
)

// Kafka has offsets and no naks: a record that failed is handed out again by ourselves,
// before any other of its partition, and its offset is not committed before it succeeds.
type kafkaSource struct {
	client *kgo.Client
	again  *kgo.Record
}

func newKafka(brokers string) (source, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(brokers, ",")...),
		kgo.ConsumerGroup("welcome-email"), kgo.ConsumeTopics("users.created"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		// by its name one that was killed is known again, and gets its partitions at once
		kgo.InstanceID("welcome-email-1"))
	if err != nil {
		return nil, err
	}
	return &kafkaSource{client: client}, nil
}

func (s *kafkaSource) next(ctx context.Context) (*message, error) {
	record := s.again
	for record == nil {
		// partitions may go to others now, while nothing is in our hands
		s.client.AllowRebalance()
		fetches := s.client.PollRecords(ctx, 1)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if records := fetches.Records(); len(records) > 0 {
			record = records[0]
		}
	}
	s.again = nil
	headers := propagation.MapCarrier{}
	for _, h := range record.Headers {
		headers[h.Key] = string(h.Value)
	}
	return &message{
		headers: headers,
		payload: record.Value,
		ack:     func(ctx context.Context) error { return s.client.CommitRecords(ctx, record) },
		nak: func(ctx context.Context) error {
			s.again = record
			time.Sleep(backoff)
			return nil
		},
	}, nil
}

func (s *kafkaSource) close() { s.client.CloseAllowingRebalance() }
