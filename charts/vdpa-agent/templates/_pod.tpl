{{/*
Each of these takes a dict: `root`, the chart's own scope; `name`, that of the DaemonSet; `pool`, the values of one pool; and
`options`, which the first of them makes: those of the values, and those that other values decide.
*/}}
{{- define "vdpa-agent.options" -}}
{{- $pool := .pool -}}
{{- $options := dict
  "listen" (printf "%s/vdpa.sock" $pool.runDirectory)
  "pciList" (ternary "/etc/vdpa-agent/pciList.dat" (printf "%s/pciList.dat" $pool.runDirectory) (not (empty $pool.deviceList)))
  "socketDir" (printf "%s/vhost" $pool.runDirectory)
  "socketList" (printf "%s/socketList.dat" $pool.runDirectory)
  "memory" (ternary "none" "hugepages" (eq $pool.hugepages.size "none"))
-}}
{{- range $name, $value := $pool.config -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $options $name $value -}}
{{- end -}}
{{- end -}}
{{- if and (include "vdpa-agent.hasPools" $pool) (not (hasKey $options "resourceConfig")) -}}
{{- $_ := set $options "resourceConfig" "/etc/vdpa-agent-pools/config.json" -}}
{{- end -}}
{{- if and (include "vdpa-agent.hasPools" $pool) (not (hasKey $options "sysfs")) -}}
{{- $_ := set $options "sysfs" "/host/sys" -}}
{{- end -}}
{{- if and (hasKey $options "resourceConfig") $pool.devicePlugin.enabled -}}
{{- if ne (int $pool.runAsUser) 0 -}}
{{- fail (printf "devicePlugin.enabled needs runAsUser 0, not %v: the kubelet's directory is root's; say devicePlugin.enabled=false, and pods get no VF by their limits" $pool.runAsUser) -}}
{{- end -}}
{{- if not (hasKey $options "kubeletDir") -}}
{{- $_ := set $options "kubeletDir" "/var/lib/kubelet" -}}
{{- end -}}
{{- if not (hasKey $options "deviceInfoDir") -}}
{{- $_ := set $options "deviceInfoDir" "/var/run/k8s.cni.cncf.io/devinfo/dp" -}}
{{- end -}}
{{- end -}}
{{ toYaml $options }}
{{- end }}

{{/* Whether the chart gives the agent pools of VFs. Where the agent has no daemon, it serves none. */}}
{{- define "vdpa-agent.hasPools" -}}
{{- $inline := dig "resourceList" (list) (.resourceConfig | default dict) -}}
{{- if and (or .resourceConfigMap $inline) (not .config.exampleData) (ne (.config.daemon | default "auto") "none") -}}true{{- end -}}
{{- end }}

{{/* Whether front ends may open sockets that belong to users of their own: any may in a ConfigMap that is not ours. */}}
{{- define "vdpa-agent.connectsToOthers" -}}
{{- $clients := or (eq (.options.vhostMode | default "server") "client") (ne .pool.resourceConfigMap "") -}}
{{- range dig "resourceList" (list) (.pool.resourceConfig | default dict) -}}
{{- if eq (.vhostMode | default "") "client" -}}{{- $clients = true -}}{{- end -}}
{{- end -}}
{{- $managed := not (or .options.exampleData (eq (.options.daemon | default "auto") "none")) -}}
{{- if and $clients $managed (eq (int .pool.runAsUser) 0) -}}true{{- end -}}
{{- end }}

{{/* Whether the daemon may be given VFs of hardware. */}}
{{- define "vdpa-agent.drivesHardware" -}}
{{- if not (or .simulate .exampleData (eq (.daemon | default "auto") "none")) -}}true{{- end -}}
{{- end }}

{{/* The HTTP port, or nothing where the kubelet cannot reach it. */}}
{{- define "vdpa-agent.httpPort" -}}
{{- if .httpListen -}}
{{- $host := regexReplaceAll ":[0-9]+$" .httpListen "" -}}
{{- if not (or (hasPrefix "127." $host) (has $host (list "localhost" "[::1]"))) -}}
{{ regexFind "[0-9]+$" .httpListen }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The longest time that the agent takes to end, and a margin. */}}
{{- define "vdpa-agent.termination" -}}
{{- $grace := .options.stopGrace | default 5 | float64 -}}
{{- with .pool.terminationGracePeriodSeconds -}}
{{- if lt (float64 .) (addf $grace 5) -}}
{{- fail (printf "terminationGracePeriodSeconds %v is too short: the kubelet would kill the agent before its daemon has ended; give at least 5 more than config.stopGrace, which is %v" . $grace) -}}
{{- end -}}
{{ . }}
{{- else -}}
{{ addf $grace 10 | ceil | int }}
{{- end -}}
{{- end }}

{{- define "vdpa-agent.updateStrategy" -}}
{{- if .pool.updateStrategy -}}
{{ toYaml .pool.updateStrategy }}
{{- else if or (eq (.options.vhostMode | default "server") "client") (eq (.options.daemon | default "auto") "none") -}}
type: RollingUpdate
{{- else -}}
type: OnDelete
{{- end -}}
{{- end }}

{{/* Before Kubernetes 1.19 the seccomp profile is an annotation of the pod. */}}
{{- define "vdpa-agent.securityContext" -}}
{{- $pool := .pool -}}
{{- $minor := .root.Capabilities.KubeVersion.Version -}}
{{- if eq $pool.securityMode "privileged" -}}
privileged: true
{{- else -}}
privileged: false
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  {{- $owned := hasKey .options "socketOwner" }}
  {{- $locks := and (eq (int $pool.runAsUser) 0) (include "vdpa-agent.drivesHardware" .options) }}
  {{- $connects := include "vdpa-agent.connectsToOthers" . }}
  {{- if or $owned $locks $connects $pool.extraCapabilities }}
  add:
    {{- if $locks }}
    - IPC_LOCK  # VFIO pins the memory of front ends, more of it than the limit of a container allows
    {{- end }}
    {{- if $owned }}
    - CHOWN  # sockets are given to config.socketOwner
    - FOWNER  # and get their mode after that
    {{- end }}
    {{- if $connects }}
    - DAC_OVERRIDE  # in vhost mode client the sockets are those of front ends, of whatever user
    {{- end }}
    {{- range $pool.extraCapabilities }}
    - {{ . }}
    {{- end }}
  {{- end }}
{{- if semverCompare ">=1.19-0" $minor }}
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- end }}
readOnlyRootFilesystem: true
runAsUser: {{ int64 $pool.runAsUser }}
runAsGroup: {{ int64 $pool.runAsGroup }}
runAsNonRoot: {{ ne (int $pool.runAsUser) 0 }}
{{- with $pool.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A group that sockets are given to is one of the process, which may then give them without a capability. */}}
{{- define "vdpa-agent.groups" -}}
{{- $groups := .pool.supplementalGroups -}}
{{- range $name := list "socketGroup" "listenGroup" -}}
{{- $group := get $.options $name -}}
{{- if not (or (kindIs "string" $group) (has $group $groups)) -}}
{{- $groups = append $groups $group -}}
{{- end -}}
{{- end -}}
{{ toJson $groups }}
{{- end }}

{{- define "vdpa-agent.args" -}}
- run
{{- range $name, $value := .options }}
{{- $option := printf "--%s" (kebabcase $name) }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ $option }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "%s=%s" $option (ternary . (toJson .) (kindIs "string" .)) | quote }}
{{- end }}
{{- else }}
- {{ printf "%s=%s" $option (ternary $value (toJson $value) (kindIs "string" $value)) | quote }}
{{- end }}
{{- end }}
{{- range .pool.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* By HTTP where there is a port, else by the agent's own commands, of which `status` answers whether ready or not. */}}
{{- define "vdpa-agent.probes" -}}
{{- $port := include "vdpa-agent.httpPort" .options -}}
{{- if semverCompare ">=1.18-0" .root.Capabilities.KubeVersion.Version -}}
startupProbe:
  {{- if $port }}
  httpGet:
    path: /livez
    port: http
  {{- else }}
  exec:
    command: [vdpa-agent, status]
  {{- end }}
  {{- toYaml .pool.probes.startup | nindent 2 }}
{{ end -}}
livenessProbe:
  {{- if $port }}
  httpGet:
    path: /livez
    port: http
  {{- else }}
  exec:
    command: [vdpa-agent, status]
  {{- end }}
  {{- toYaml .pool.probes.liveness | nindent 2 }}
readinessProbe:
  {{- if $port }}
  httpGet:
    path: /readyz
    port: http
  {{- else }}
  exec:
    command: [vdpa-agent, health]
  {{- end }}
  {{- toYaml .pool.probes.readiness | nindent 2 }}
{{- end }}

{{/*
With isolation: device each VF has a daemon, of 9 MiB and what the agent and its start take. Only where the chart knows the VFs, and
reads the limit, can it see what is too little.
*/}}
{{- define "vdpa-agent.refuseTooLittleMemory" -}}
{{- $limit := toString (dig "limits" "memory" "" .pool.resources) -}}
{{- if and (eq (toString .options.isolation) "device") (regexMatch "^[0-9]+[MG]i$" $limit) -}}
{{- $given := mul (regexFind "^[0-9]+" $limit | int) (ternary 1024 1 (hasSuffix "Gi" $limit)) -}}
{{- $needed := add 64 (mul 9 (len (.pool.deviceList | default list))) -}}
{{- if lt $given $needed -}}
{{- fail (printf "resources.limits.memory %s is too little: with config.isolation device, %d VFs need %dMi" $limit (len .pool.deviceList) $needed) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "vdpa-agent.resources" -}}
{{- include "vdpa-agent.refuseTooLittleMemory" . -}}
{{- $resources := deepCopy .pool.resources -}}
{{- if ne .pool.hugepages.size "none" -}}
{{- $_ := mergeOverwrite $resources (dict "limits" (dict (printf "hugepages-%s" .pool.hugepages.size) .pool.hugepages.amount)) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{- define "vdpa-agent.podSpec" -}}
{{- $pool := .pool -}}
{{- $kube := .root.Capabilities.KubeVersion.Version -}}
{{- $privileged := eq $pool.securityMode "privileged" -}}
{{- $system := hasPrefix "system-" $pool.priorityClassName -}}
{{- with $pool.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
serviceAccountName: {{ include "vdpa-agent.serviceAccount" .root }}
automountServiceAccountToken: false
{{- if semverCompare ">=1.13-0" $kube }}
enableServiceLinks: false
{{- end }}
{{- if and $pool.priorityClassName (or (not $system) (semverCompare ">=1.17-0" $kube) (eq .root.Release.Namespace "kube-system")) }}
priorityClassName: {{ $pool.priorityClassName }}
{{- end }}
{{- if and $pool.runtimeClassName (semverCompare ">=1.14-0" $kube) }}
runtimeClassName: {{ $pool.runtimeClassName }}
{{- end }}
terminationGracePeriodSeconds: {{ include "vdpa-agent.termination" . }}
{{- with include "vdpa-agent.groups" . | fromJsonArray }}
securityContext:
  supplementalGroups:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with $pool.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pool.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pool.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: vdpa-agent
    image: {{ include "vdpa-agent.image" (dict "image" $pool.image "appVersion" .root.Chart.AppVersion) }}
    imagePullPolicy: {{ $pool.image.pullPolicy }}
    args:
      {{- include "vdpa-agent.args" . | nindent 6 }}
    env:
      # For the commands that are run in the container, and for the probes.
      - name: VDPA_AGENT_ADDRESS
        value: {{ .options.listen | quote }}
      {{- with $pool.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with include "vdpa-agent.httpPort" .options }}
    ports:
      - name: http
        containerPort: {{ . }}
        protocol: TCP
    {{- end }}
    {{- include "vdpa-agent.probes" . | nindent 4 }}
    resources:
      {{- include "vdpa-agent.resources" . | nindent 6 }}
    securityContext:
      {{- include "vdpa-agent.securityContext" . | nindent 6 }}
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - name: run
        mountPath: {{ $pool.runDirectory }}
      {{- if $pool.deviceList }}
      - name: device-list
        mountPath: /etc/vdpa-agent
        readOnly: true
      {{- end }}
      {{- if include "vdpa-agent.hasPools" $pool }}
      - name: pools
        mountPath: /etc/vdpa-agent-pools
        readOnly: true
      {{- if eq .options.sysfs "/host/sys" }}
      - name: sysfs
        mountPath: /host/sys
        readOnly: true
      {{- end }}
      {{- end }}
      {{- if and $pool.devicePlugin.enabled .options.kubeletDir }}
      - name: device-plugins
        mountPath: {{ .options.kubeletDir }}/device-plugins
      - name: pod-resources
        mountPath: {{ .options.kubeletDir }}/pod-resources
        readOnly: true
      - name: device-info
        mountPath: {{ .options.deviceInfoDir }}
      {{- end }}
      {{- if ne $pool.hugepages.size "none" }}
      - name: hugepages
        mountPath: /dev/hugepages
      {{- end }}
      {{- if $privileged }}
      {{- range $index, $path := $pool.hostDevices }}
      - name: host-devices-{{ $index }}
        mountPath: {{ $path }}
      {{- end }}
      {{- end }}
      {{- with $pool.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: run
    hostPath:
      path: {{ $pool.runDirectory }}
      type: DirectoryOrCreate
  {{- if $pool.deviceList }}
  - name: device-list
    configMap:
      name: {{ .name }}-devices
  {{- end }}
  {{- if include "vdpa-agent.hasPools" $pool }}
  - name: pools
    configMap:
      name: {{ $pool.resourceConfigMap | default (printf "%s-pools" .name) }}
  {{- if eq .options.sysfs "/host/sys" }}
  # The pod's own does not have the network interfaces of the node, by which pfNames goes.
  - name: sysfs
    hostPath:
      path: /sys
      type: Directory
  {{- end }}
  {{- end }}
  {{- if and $pool.devicePlugin.enabled .options.kubeletDir }}
  - name: device-plugins
    hostPath:
      path: {{ .options.kubeletDir }}/device-plugins
      type: Directory
  # Absent before Kubernetes 1.15.
  - name: pod-resources
    hostPath:
      path: {{ .options.kubeletDir }}/pod-resources
      type: DirectoryOrCreate
  # Multus reads there which socket a VF has; without Multus nobody does.
  - name: device-info
    hostPath:
      path: {{ .options.deviceInfoDir }}
      type: DirectoryOrCreate
  {{- end }}
  {{- if ne $pool.hugepages.size "none" }}
  - name: hugepages
    emptyDir:
      medium: HugePages
  {{- end }}
  {{- if $privileged }}
  {{- range $index, $path := $pool.hostDevices }}
  # Made if absent: the agent then says of each VF what it lacks.
  - name: host-devices-{{ $index }}
    hostPath:
      path: {{ $path }}
      type: DirectoryOrCreate
  {{- end }}
  {{- end }}
  {{- with $pool.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
