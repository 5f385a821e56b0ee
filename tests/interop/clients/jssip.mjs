// A JsSIP user agent in Node. It sends reg-id 1 and an instance by itself, and comes back by itself.

import { createRequire } from "node:module";
import { obey, reporter } from "./control.js";

const require = createRequire(import.meta.url);
globalThis.WebSocket = require("ws");
const JsSIP = require("jssip");

const { control, server, user, domain, password, instance } = JSON.parse(process.argv[2]);
const report = reporter(control);
const agent = new JsSIP.UA({
  sockets: [new JsSIP.WebSocketInterface(server)],
  uri: `sip:${user}@${domain}`,
  instance_id: instance,
  password,
});

agent.on("disconnected", () => report("disconnected"));
agent.on("registered", ({ response }) => report("registered", {
  status: response.status_code,
  require: response.getHeader("require") ?? "",
  flowTimer: response.getHeader("flow-timer") ?? "",
}));
agent.on("registrationFailed", ({ cause }) => report("refused", { reason: cause }));
agent.on("newMessage", ({ originator, request }) => {
  if (originator === "remote") report("message", { from: request.from.uri.toString(), body: request.body });
});
agent.start();
await obey(control, {
  message: ({ to, body }) => agent.sendMessage(to, body, {
    eventHandlers: {
      succeeded: ({ response }) => report("sent", { status: response.status_code }),
      failed: ({ response, cause }) => report("sent", { status: response?.status_code ?? 0, reason: cause }),
    },
  }),
  unregister: () => agent.unregister(),
}, report);
agent.stop();
