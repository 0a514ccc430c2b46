// monitoring reads one PodMonitor or PrometheusRule from standard input and refuses what the operator's own types do not have.
package main

import (
	"fmt"
	"io"
	"os"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := check(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "monitoring:", err)
		os.Exit(1)
	}
}

func check(manifest io.Reader) error {
	content, err := io.ReadAll(manifest)
	if err != nil {
		return err
	}
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(content, &head); err != nil {
		return err
	}
	switch head.Kind {
	case monitoringv1.PodMonitorsKind:
		return yaml.UnmarshalStrict(content, &monitoringv1.PodMonitor{})
	case monitoringv1.PrometheusRuleKind:
		return yaml.UnmarshalStrict(content, &monitoringv1.PrometheusRule{})
	}
	return fmt.Errorf("kind %q is neither a PodMonitor nor a PrometheusRule", head.Kind)
}
