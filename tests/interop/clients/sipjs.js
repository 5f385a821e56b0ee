// A SIP.js user agent with one flow (reg-id 1). Runs in Node, where it can do everything but calls, and in a page.

import * as SIP from "sip.js";
import { obey, reporter } from "./control.js";

/** Settings: control, server (a wss: URL), user, domain, password, instance (a UUID). */
export async function run({ control, server, user, domain, password, instance }) {
  const report = reporter(control);
  const agent = new SIP.UserAgent({
    uri: SIP.UserAgent.makeURI(`sip:${user}@${domain}`),
    authorizationUsername: user,
    authorizationPassword: password,
    transportOptions: { server },
    sessionDescriptionHandlerFactoryOptions: { iceGatheringTimeout: 1000, peerConnectionConfiguration: { iceServers: [] } },
    logBuiltinEnabled: false,
    logLevel: "warn",
    logConnector: (level, category, label, content) => report("log", { text: `${level} ${category}: ${content}` }),
    delegate: {
      onMessage: async (message) => {
        await message.accept();
        report("message", { from: message.request.from.uri.toString(), body: message.request.body });
      },
      onInvite: (invitation) => {
        follow(invitation);
        report("incoming", { from: invitation.request.from.uri.toString() });
      },
    },
  });
  let call;

  function follow(session) {
    call = session;
    session.stateChange.addListener((state) => report(`call ${state}`));
  }

  // It does not come back by itself (its issue 1095): the page has to see to that.
  agent.transport.onDisconnect = async (error) => {
    report("disconnected", { reason: String(error ?? "") });
    if (!error) return;
    await agent.reconnect();
    await register();
  };

  const registerer = new SIP.Registerer(agent, { regId: 1, instanceId: instance, expires: 600 });

  function register() {
    return registerer.register({
      requestDelegate: {
        onAccept: ({ message }) => report("registered", {
          status: message.statusCode,
          require: message.getHeader("require") ?? "",
          flowTimer: message.getHeader("flow-timer") ?? "",
        }),
        onReject: ({ message }) => report("refused", { status: message.statusCode }),
      },
    });
  }

  /** What the peer connection of the call received, in octets. */
  async function received() {
    let octets = 0;
    for (const item of (await call.sessionDescriptionHandler.peerConnection.getStats()).values()) {
      if (item.type === "inbound-rtp") octets += item.bytesReceived;
    }
    return octets;
  }

  await agent.start();
  await register();
  await obey(control, {
    message: ({ to, body }) => new SIP.Messager(agent, SIP.UserAgent.makeURI(to), body).message({
      requestDelegate: {
        onAccept: ({ message }) => report("sent", { status: message.statusCode }),
        onReject: ({ message }) => report("sent", { status: message.statusCode }),
      },
    }),
    invite: async ({ to }) => {
      follow(new SIP.Inviter(agent, SIP.UserAgent.makeURI(to), {
        sessionDescriptionHandlerOptions: { constraints: { audio: true, video: false } },
      }));
      const responded = ({ message }) => report("response", { status: message.statusCode });
      await call.invite({ requestDelegate: { onTrying: responded, onProgress: responded, onAccept: responded, onReject: responded } });
    },
    accept: () => call.accept({ sessionDescriptionHandlerOptions: { constraints: { audio: true, video: false } } }),
    bye: () => call.bye({ requestDelegate: { onAccept: ({ message }) => report("ended", { status: message.statusCode }) } }),
    media: async () => report("media", { octets: await received() }),
    unregister: () => registerer.unregister(),
  }, report);
}
