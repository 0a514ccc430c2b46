{{- define "vdpa-agent.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "vdpa-agent.fullname" -}}
{{- $name := include "vdpa-agent.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "vdpa-agent.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "vdpa-agent.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "vdpa-agent.selector" -}}
app.kubernetes.io/name: {{ include "vdpa-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vdpa-agent.labels" -}}
{{ include "vdpa-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vdpa-agent.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end -}}
{{- end }}

{{/*
The pools, as a map of a pool's name to its values: one without a name where none are given. What a pool does not say is what
the values beside `pools` say.
*/}}
{{- define "vdpa-agent.pools" -}}
{{- $common := omit .Values "pools" -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.pools -}}
{{- $_ := set $pools $name (mergeOverwrite (deepCopy $common) (deepCopy ($pool | default dict))) -}}
{{- end -}}
{{- if not $pools -}}
{{- $_ := set $pools "" $common -}}
{{- end -}}
{{ toYaml $pools }}
{{- end }}
