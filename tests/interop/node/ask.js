// Asks a vdpa-agent as a client on grpc-js does, and prints what it is told as JSON.
//
// usage: node ask.js SOCKET PROTOS GOOGLE-PROTOS
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [listen, protos, googleProtos] = process.argv.slice(2);
const files = ["vdpadpdk.proto", "vdpa_agent/v1/device_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const loaded = loader.loadSync(files, { includeDirs: [protos, googleProtos], keepCase: true, enums: String, defaults: true });
const { vdpadpdk, vdpa_agent: vdpaAgent } = grpc.loadPackageDefinition(loaded);
const connect = (Service) => new Service(`unix:${listen}`, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 10_000 });

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function refused(client, method, request) {
  try {
    await call(client, method, request);
    return null;
  } catch (error) {
    const [packed] = error.metadata.get("grpc-status-details-bin");
    const [detail] = loaded["google.rpc.Status"].deserialize(packed).details;
    const { reason, domain } = loaded["google.rpc.ErrorInfo"].deserialize(detail.value);
    return { code: grpc.status[error.code], reason, domain };
  }
}

// The first message of a watch, and the status with which it ends once it is cancelled.
function watched(client) {
  return new Promise((resolve, reject) => {
    const watch = client.WatchDevices({}, deadline());
    let first = null;
    watch.on("data", (message) => {
      first = message;
      watch.cancel();
    });
    watch.on("error", (error) => (first ? resolve({ first, code: grpc.status[error.code] }) : reject(error)));
  });
}

async function main() {
  const socketOf = connect(vdpadpdk.VdpaDpdk);
  const devices = connect(vdpaAgent.v1.DeviceService);
  const told = {
    known: await call(socketOf, "GetSocketpath", { pciAddress: "0000:82:00.5" }),
    unknown: await call(socketOf, "GetSocketpath", { pciAddress: "0000:81:00.5" }),
    devices: (await call(devices, "ListDevices", {})).devices,
    refused: await refused(devices, "GetDevice", { pci_address: "0000:87:00.5" }),
    watched: await watched(devices),
    after: await call(devices, "GetStatus", {}),
  };
  console.log(JSON.stringify(told));
  socketOf.close();
  devices.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
