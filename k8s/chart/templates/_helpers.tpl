{{- define "enginehouse.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select pods. Takes a list: the root, the component ("" for none). */}}
{{- define "enginehouse.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* All recommended labels; the same list. */}}
{{- define "enginehouse.labels" -}}
{{- $root := index . 0 -}}
{{ include "enginehouse.selector" . }}
app.kubernetes.io/part-of: enginehouse
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Of a pod: without what changes with each release of the chart. */}}
{{- define "enginehouse.podLabels" -}}
{{ include "enginehouse.selector" . }}
app.kubernetes.io/part-of: enginehouse
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end -}}

{{/* registry/repository:tag@digest. Takes a list: the root, the image, the repository where the image names none. */}}
{{- define "enginehouse.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := default (index . 2) $image.repository -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $repository }}:{{ $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "enginehouse.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "enginehouse.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "enginehouse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* gRPC probes: the kubelet speaks no TLS, so with TLS they ask the port that answers health alone. */}}
{{- define "enginehouse.probePort" -}}
{{- if (index . 0).Values.tls.enabled }}8080{{ else }}{{ index . 1 }}{{ end -}}
{{- end -}}

{{/* Resources with a GPU where there are some. Takes a list: the root, the resources. */}}
{{- define "enginehouse.gpuResources" -}}
{{- $root := index . 0 -}}
{{- $resources := deepCopy (index . 1) -}}
{{- if $root.Values.gpu.enabled -}}
{{- $limits := set (default dict $resources.limits) $root.Values.gpu.resource 1 -}}
{{- $resources = set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* JSON of backend to image, of the build Jobs. */}}
{{- define "enginehouse.workerImages" -}}
{{- $images := dict -}}
{{- range $backend, $image := .Values.workers -}}
{{- $_ := set $images $backend (include "enginehouse.image" (list $ $image (printf "enginehouse/worker-%s" $backend))) -}}
{{- end -}}
{{- toJson $images -}}
{{- end -}}

{{/* More environment variables, from a map. */}}
{{- define "enginehouse.env" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "enginehouse.serverTls" -}}
{{- if .Values.tls.enabled }}
- {name: ENGINEHOUSE_TLS_CERTIFICATE, value: /etc/enginehouse/tls/tls.crt}
- {name: ENGINEHOUSE_TLS_KEY, value: /etc/enginehouse/tls/tls.key}
- {name: ENGINEHOUSE_TLS_CLIENT_CA, value: /etc/enginehouse/tls/ca.crt}
- {name: ENGINEHOUSE_HEALTH_PORT, value: "8080"}
{{- end }}
{{- end -}}

{{- define "enginehouse.serverAuth" -}}
{{- if .Values.auth.enabled }}
- {name: ENGINEHOUSE_AUTH, value: kubernetes}
- {name: ENGINEHOUSE_AUTH_ROLES_FILE, value: /etc/enginehouse/auth/roles.yaml}
{{- end }}
{{- end -}}

{{/* A token to show to Enginehouse's services: the variable that names its file, given in a list with the root. */}}
{{- define "enginehouse.tokenFile" -}}
{{- if (index . 0).Values.auth.enabled }}
- {name: {{ index . 1 }}, value: /var/run/secrets/enginehouse/token}
{{- end }}
{{- end -}}

{{- define "enginehouse.authMount" -}}
{{- if .Values.auth.enabled }}
- {name: auth, mountPath: /etc/enginehouse/auth, readOnly: true}
{{- end }}
{{- end -}}

{{- define "enginehouse.tokenMount" -}}
{{- if .Values.auth.enabled }}
- {name: token, mountPath: /var/run/secrets/enginehouse, readOnly: true}
{{- end }}
{{- end -}}

{{- define "enginehouse.authVolume" -}}
{{- if .Values.auth.enabled }}
- name: auth
  configMap: {name: {{ include "enginehouse.fullname" . }}-auth}
{{- end }}
{{- end -}}

{{- define "enginehouse.tokenVolume" -}}
{{- if .Values.auth.enabled }}
- name: token
  projected:
    sources:
      - serviceAccountToken: {audience: enginehouse, expirationSeconds: 3600, path: token}
{{- end }}
{{- end -}}

{{- define "enginehouse.clientTls" -}}
{{- if .Values.tls.enabled }}
- {name: ENGINEHOUSE_CLIENT_CA, value: /etc/enginehouse/tls/ca.crt}
- {name: ENGINEHOUSE_CLIENT_CERTIFICATE, value: /etc/enginehouse/tls/tls.crt}
- {name: ENGINEHOUSE_CLIENT_KEY, value: /etc/enginehouse/tls/tls.key}
{{- end }}
{{- end -}}

{{- define "enginehouse.executor" -}}
{{- if .Values.optimizer.executor }}{{ .Values.optimizer.executor }}{{ else if .Values.gpu.enabled }}kubernetes{{ else }}local{{ end -}}
{{- end -}}

{{/* What values.schema.json cannot say: combinations. */}}
{{- define "enginehouse.validate" -}}
{{- if and (not .Values.gpu.enabled) (has .Values.inference.backend (list "tensorrt" "tf-trt")) -}}
{{- fail (printf "inference.backend is %s, which needs a GPU, and gpu.enabled is false: set inference.backend=onnxruntime, or gpu.enabled=true" .Values.inference.backend) -}}
{{- end -}}
{{- if and .Values.auth.enabled (not .Values.tls.enabled) -}}
{{- fail "auth.enabled has callers show tokens, which services refuse to take over plain text: set tls.enabled=true" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.enabled) -}}
{{- fail "tls.certManager.enabled makes certificates that nothing would use: set tls.enabled=true too" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas is %d and maxReplicas %d: set maxReplicas to at least minReplicas" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and .Values.telemetry.aggregator.enabled (not .Values.telemetry.agent.enabled) -}}
{{- fail "telemetry.aggregator merges what the agents send, and telemetry.agent.enabled is false: set it to true, or telemetry.aggregator.enabled=false" -}}
{{- end -}}
{{- if and .Values.store.resultsUrl (not .Values.benchmark.enabled) -}}
{{- fail "store.resultsUrl is where benchmarks leave their results, and benchmark.enabled is false: set it to true, or leave store.resultsUrl empty" -}}
{{- end -}}
{{- if eq .Release.Namespace .Values.namespace.node -}}
{{- fail (printf "namespace.node is the release's own namespace, %s: the node agent mounts a folder of its host, which the restricted Pod Security level there refuses. Set namespace.node to another name" .Release.Namespace) -}}
{{- end -}}
{{- end -}}
