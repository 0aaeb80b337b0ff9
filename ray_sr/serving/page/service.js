// Talks to the service: requests whose progress can be seen, jobs that are followed, answers that are problems.

const ENDED = new Set(["succeeded", "failed", "canceled"]);

/** Something to tell the visitor: a title, what to do, and the id of the request if there was one. */
export class Problem extends Error {
  constructor(title, detail, { status = 0, id = "" } = {}) {
    super(detail);
    Object.assign(this, { title, detail, status, id });
  }
}

export const service = { limits: null, models: [], key: sessionStorage.getItem("ray-sr key") ?? "" };
const headers = () => (service.key ? { Authorization: `Bearer ${service.key}` } : {});

function problemOf(status, text, retryAfter) {
  let told = {};
  try {
    told = JSON.parse(text);
  } catch {
    // A proxy in between answers in a language of its own; the status has to do.
  }
  const wait = told.retry_after ?? retryAfter;
  const detail = told.detail ?? `the service answered with status ${status}; try again later`;
  const words = wait ? detail.replace("try again later", `try again in ${seconds(wait)}`) : detail;
  return new Problem(told.title ?? "That did not work", sentence(words), { status, id: told.instance ?? "" });
}

const unreachable = () => new Problem("The service does not answer", "Check the connection, then try again.");

/** The answer to a request. Throws a Problem for every answer other than success. */
export async function ask(method, url, signal, json) {
  let response;
  const kind = json ? { "Content-Type": "application/json" } : {};
  try {
    response = await fetch(url, { method, headers: { ...headers(), ...kind }, signal, body: json });
  } catch (error) {
    throw signal?.aborted ? error : unreachable();
  }
  if (!response.ok) throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

/** A request whose progress in both directions can be followed, which fetch cannot do for what it sends. */
export function transfer(method, url, body, signal, { onSent, onReceived, headers: further = {} }) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    const share = (then) => (event) => then?.(event.lengthComputable ? event.loaded / event.total : undefined);
    request.open(method, url);
    request.responseType = "blob";
    for (const [name, value] of Object.entries({ ...headers(), ...further })) request.setRequestHeader(name, value);
    if (body) request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = share(onSent);
    request.onprogress = share(onReceived);
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal.reason);
    request.onload = async () => {
      if (request.status < 300) resolve(request);
      else reject(problemOf(request.status, await request.response.text(), request.getResponseHeader("Retry-After")));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

/** The states of a job, as the service sends them (server-sent events with the job as JSON). */
async function* events(url, signal) {
  const response = await ask("GET", url, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

/** Follows a job to its end. A connection that breaks off is replaced: the job goes on without it. */
export async function follow(job, signal, onProgress) {
  const url = `v1/jobs/${job.id}`;
  while (!ENDED.has(job.status)) {
    try {
      for await (job of events(`${url}/events`, signal)) onProgress(job);
    } catch (error) {
      if (signal.aborted || error instanceof Problem) throw error;
    }
    if (ENDED.has(job.status)) break;
    await new Promise((resolve) => setTimeout(resolve, 500));
    job = await (await ask("GET", url, signal)).json();
    onProgress(job);
  }
  if (job.status === "failed") throw problemOf(job.error.status, JSON.stringify(job.error));
  if (job.status === "canceled") throw new Problem("The work was cancelled", "The service ended it. Try again.");
}

/** Ends a job and has the service forget its result. Works while the page is being left, too. */
export function discard(id) {
  fetch(`v1/jobs/${id}`, { method: "DELETE", headers: headers(), keepalive: true }).catch(() => {});
}

const seconds = (count) => (Number(count) === 1 ? "1 second" : `${count} seconds`);
const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
