{{- define "zerowake.name" -}}
{{- required "function: the name that the snapshot's function is called by" .Values.function | replace "_" "-" | trimSuffix "-" -}}
{{- end }}

{{- define "zerowake.labels" -}}
app.kubernetes.io/name: {{ include "zerowake.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "zerowake.selector" -}}
app.kubernetes.io/name: {{ include "zerowake.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zerowake.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "zerowake.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* The function's container, the same in all three variants. */}}
{{- define "zerowake.container" -}}
name: function
image: {{ required "image: what `zerowake bundle` has a Dockerfile for" .Values.image | quote }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
args:
  - --drain-s={{ .Values.drainSeconds }}
  - --start-timeout-s={{ .Values.startSeconds }}
  - --log-format=json
  {{- if .Values.gpu }}
  - --device=cuda
  {{- end }}
ports:
  - name: http1
    containerPort: 8080
env:
  - name: ZEROWAKE_SNAPSHOT
    value: {{ required "snapshot: an s3:// URL, or a mounted folder" .Values.snapshot | quote }}
  - name: ZEROWAKE_TRUST
    value: {{ join "," .Values.trust | quote }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  requests:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory }}
  limits:
    memory: {{ .Values.resources.memory }}
    {{- if .Values.gpu }}
    nvidia.com/gpu: {{ .Values.gpu | quote }}
    {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: cache
    mountPath: /cache
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
livenessProbe: # the process answers; it does so from the first moment, also while the snapshot loads
  httpGet:
    path: /livez
    {{- if ne .Values.kind "knative" }}
    port: http1
    {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe: # the function is up, and not draining
  httpGet:
    path: /readyz
    {{- if ne .Values.kind "knative" }}
    port: http1
    {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- define "zerowake.volumes" -}}
- name: tmp
  emptyDir: {}
- name: cache
  {{- if eq .Values.cache.type "hostPath" }}
  hostPath:
    path: {{ .Values.cache.path }}
    type: DirectoryOrCreate
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.sizeLimit }}
  {{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "zerowake.placement" -}}
serviceAccountName: {{ include "zerowake.account" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
