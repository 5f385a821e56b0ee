// Ties a client to its test: what happens is posted, what to do next is asked for. Runs in Node and in a page alike.

/** Returns `report(event, data)`; what is not whole is worth as little as what came out of order, hence one at a time. */
export function reporter(control) {
  let last = Promise.resolve();
  return (event, data = {}) => {
    const body = JSON.stringify({ event, ...data });
    last = last.then(() => fetch(`${control}/report`, { method: "POST", body })).catch(() => undefined);
    return last;
  };
}

/** Runs `handlers[name](argument)` for each command of the test, until it sends `quit` or is gone. */
export async function obey(control, handlers, report) {
  for (;;) {
    let command;
    try {
      const answer = await fetch(`${control}/next`);
      if (answer.status === 204) continue; // nothing yet
      command = await answer.json();
    } catch {
      return;
    }
    if (command.name === "quit") return;
    try {
      await handlers[command.name](command.argument);
    } catch (error) {
      await report("failed", { command: command.name, reason: String(error?.stack ?? error) });
    }
  }
}
