// Command metrics reads a scrape on standard input with Prometheus' own parser and prints, as JSON, every family's type and
// its samples summed up.
//
// Exit codes: 0 it is a valid scrape, 1 it is not.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

type family struct {
	Type string `json:"type"`
	// Counters and gauges: the values' sum. Histograms: the number of observations.
	Sum float64 `json:"sum"`
}

func main() {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "not a scrape:", err)
		os.Exit(1)
	}
	families := make(map[string]family, len(parsed))
	for name, f := range parsed {
		told := family{Type: f.GetType().String()}
		for _, m := range f.GetMetric() {
			told.Sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		families[name] = told
	}
	if err := json.NewEncoder(os.Stdout).Encode(families); err != nil {
		fmt.Fprintln(os.Stderr, "writing:", err)
		os.Exit(1)
	}
}
