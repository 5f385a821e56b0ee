// The SIP.js user agent of sipjs.js in Node.

import WebSocket from "ws";

globalThis.WebSocket = WebSocket;
const { run } = await import("./sipjs.js");
await run(JSON.parse(process.argv[2]));
process.exit(0);
