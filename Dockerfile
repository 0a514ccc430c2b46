# The agent and its daemon on Debian packages, without a shell, a package manager or a compiler. docs/image.md tells more.
#
#   docker build -t vdpa-agent .                        the agent
#   docker build -t vdpa-front --target frontend .      a DPDK front end that counts packets, to try the sockets with
#
# Debian keeps only the newest version of a package of a release: a pinned one could not be installed for long.
# hadolint global ignore=DL3008
ARG BASE=docker.io/library/debian:trixie-slim

# ---- the C programs --------------------------------------------------------------------------------------------------
FROM ${BASE} AS native
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
      gcc libc6-dev libdpdk-dev libjansson-dev meson ninja-build pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY vdpa_agent/__init__.py vdpa_agent/
COPY native native
RUN meson setup --buildtype=release -Dtests=false /build native \
 && DESTDIR=/out meson install -C /build --strip --quiet

# ---- Python, to build with -------------------------------------------------------------------------------------------
FROM ${BASE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/image.txt requirements/
RUN python3 -m venv /tools \
 && /tools/bin/pip install --quiet --require-hashes -r requirements/image.txt

# ---- the agent and what it imports -----------------------------------------------------------------------------------
FROM tools AS agent
COPY requirements/runtime.txt requirements/
RUN python3.13 -m venv --without-pip --without-scm-ignore-files /opt/vdpa-agent \
 && rm /opt/vdpa-agent/bin/[Aa]ctivate* \
 && /tools/bin/pip --python /opt/vdpa-agent install --quiet --no-compile --require-hashes -r requirements/runtime.txt
COPY LICENSE README.md pyproject.toml ./
COPY vdpa_agent vdpa_agent
RUN /tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /tools/bin/pip --python /opt/vdpa-agent install --quiet --no-compile --no-deps --no-index /wheel/*.whl \
 && python3.13 -m compileall -q --invalidation-mode unchecked-hash /opt/vdpa-agent/lib

# ---- the operating system under it -----------------------------------------------------------------------------------
FROM tools AS system
COPY scripts/image-root /usr/local/bin/
RUN image-root /system \
      base-files libc6 libgcc-s1 libstdc++6 \
      libexpat1 libffi8 libnghttp2-14 libssl3t64 libzstd1 libpython3.13-minimal libpython3.13-stdlib python3.13-minimal zlib1g \
      libbsd0 libfdt1 libjansson4 libmd0 libnuma1 \
      librte-bus-auxiliary25 librte-bus-pci25 librte-bus-vdev25 librte-common-mlx5-25 librte-common-nfp25 \
      librte-common-sfc-efx25 librte-cryptodev25 librte-dmadev25 librte-eal25 librte-ethdev25 librte-hash25 librte-kvargs25 \
      librte-log25 librte-mbuf25 librte-mempool25 librte-meter25 librte-net25 librte-pci25 librte-rcu25 librte-ring25 librte-sched25 \
      librte-telemetry25 librte-vdpa-ifc25 librte-vdpa-mlx5-25 librte-vdpa-nfp25 librte-vdpa-sfc25 librte-vhost25 \
      ibverbs-providers libibverbs1 libnl-3-200 libnl-route-3-200 \
 && python3.13 -m compileall -q --invalidation-mode unchecked-hash -s /system -p / /system/usr/lib/python3.13 \
 && install -d -o 65532 -g 65532 /system/run/vdpa

# ---- what is in it ---------------------------------------------------------------------------------------------------
FROM tools AS sbom
COPY --from=agent /opt/vdpa-agent /opt/vdpa-agent
COPY --from=system /system/var/lib/dpkg /system/var/lib/dpkg
COPY --from=system /system/usr/share/doc /system/usr/share/doc
RUN mkdir /sbom \
 && /tools/bin/debsbom generate --root /system --distro-arch "$(dpkg --print-architecture)" --with-licenses \
      --sbom-type cdx --cdx-schema-version 1.6 --out /sbom/debian \
 && /tools/bin/cyclonedx-py environment --output-file /sbom/python.cdx.json /opt/vdpa-agent

# ---- a front end that counts packets ---------------------------------------------------------------------------------
FROM tools AS frontend-system
COPY scripts/image-root /usr/local/bin/
RUN image-root /system \
      base-files libbsd0 libc6 libfdt1 libgcc-s1 libmd0 libnuma1 zlib1g \
      librte-bus-pci25 librte-bus-vdev25 librte-eal25 librte-ethdev25 librte-kvargs25 librte-log25 librte-mbuf25 \
      librte-mempool25 librte-mempool-ring25 librte-meter25 librte-net25 librte-net-virtio25 librte-pci25 librte-ring25 \
      librte-telemetry25

FROM scratch AS frontend
COPY --from=frontend-system /system /
COPY --from=native /out/usr/local/bin/vdpa-front /usr/local/bin/
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["vdpa-front"]
ENV PATH=/usr/local/bin RUNTIME_DIRECTORY=/dev/shm

# ---- the image -------------------------------------------------------------------------------------------------------
FROM scratch
COPY --from=system /system /
COPY --from=agent /opt/vdpa-agent /opt/vdpa-agent
COPY --from=native /out/usr/local/bin/vdpad /usr/local/bin/
COPY --from=sbom /sbom /usr/share/sbom
# DPDK wants a directory to work in: this one can be written to in every container, also where the root cannot.
ENV PATH=/opt/vdpa-agent/bin:/usr/local/bin PYTHONDONTWRITEBYTECODE=1 RUNTIME_DIRECTORY=/dev/shm
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["vdpa-agent"]
CMD ["run"]
LABEL org.opencontainers.image.title="vdpa-agent" \
      org.opencontainers.image.description="The node agent for vDPA virtual functions under Kubernetes, with its DPDK daemon" \
      org.opencontainers.image.licenses="Apache-2.0"
