// pod-security reads manifests from standard input and prints, as JSON, what the Pod Security levels `baseline` and
// `restricted` hold against each pod and pod template in them: judged by the library that the API server itself uses.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

type finding struct {
	Object string `json:"object"`
	Level  string `json:"level"`
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pod-security:", err)
		os.Exit(1)
	}
}

func run(manifests io.Reader, out io.Writer) error {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	findings := []finding{}
	documents := yaml.NewYAMLOrJSONDecoder(manifests, 4096)
	for {
		var raw json.RawMessage
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		name, template, err := podOf(raw)
		if err != nil {
			return err
		}
		if template == nil {
			continue
		}
		for _, level := range []api.Level{api.LevelBaseline, api.LevelRestricted} {
			version := api.LevelVersion{Level: level, Version: api.LatestVersion()}
			for _, result := range evaluator.EvaluatePod(version, &template.ObjectMeta, &template.Spec) {
				if !result.Allowed {
					findings = append(findings, finding{name, string(level), result.ForbiddenReason, result.ForbiddenDetail})
				}
			}
		}
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(findings)
}

// podOf returns the pod, or the pod template of a DaemonSet, or nil for any other kind.
func podOf(raw json.RawMessage) (string, *corev1.PodTemplateSpec, error) {
	var head metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &head); err != nil {
		return "", nil, err
	}
	name := head.Kind + "/" + head.Name
	switch head.Kind {
	case "Pod":
		var pod corev1.Pod
		err := json.Unmarshal(raw, &pod)
		return name, &corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}, err
	case "DaemonSet":
		var set appsv1.DaemonSet
		err := json.Unmarshal(raw, &set)
		return name, &set.Spec.Template, err
	}
	return name, nil, nil
}
