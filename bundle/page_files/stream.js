// Answers of the service: a stream of messages, each JSON and the NIfTI files that it names.

async function* pieces(response) {
  const reader = response.body.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function* messages(response) {
  let held = [], size = 0;
  const source = pieces(response);
  const take = async count => {
    while (size < count) {
      const next = await source.next();
      if (next.done) {
        if (size || count > 4) throw new Error("the answer ended early");
        return null;
      }
      held.push(next.value);
      size += next.value.length;
    }
    const bytes = new Uint8Array(count);
    let at = 0;
    while (at < count) {
      const first = held[0].subarray(0, count - at);
      bytes.set(first, at);
      at += first.length;
      if (first.length === held[0].length) held.shift();
      else held[0] = held[0].subarray(first.length);
    }
    size -= count;
    return bytes;
  };
  for (let head = await take(4); head; head = await take(4)) {
    const content = JSON.parse(new TextDecoder().decode(await take(new DataView(head.buffer).getUint32(0, true))));
    const files = {};
    for (const {name, bytes, gzip} of content.arrays) {
      const packed = await take(bytes);
      files[name] = nifti(gzip ? await unpacked(packed) : packed);
    }
    yield {...content, files};
  }
}

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function nifti(file) {
  const view = new DataView(file.buffer, file.byteOffset);
  const shape = [42, 44, 46].map(at => view.getInt16(at, true));
  const kinds = {2: Uint8Array, 16: Float32Array};
  const kind = kinds[view.getInt16(70, true)];
  const start = file.byteOffset + view.getFloat32(108, true), count = shape[0] * shape[1] * shape[2];
  return {shape, data: new kind(file.buffer, start, count), file};
}

async function sent(route, file, fields, signal) {
  const body = new FormData();
  body.append("image", file, file.name);
  for (const [name, value] of Object.entries(fields)) if (value !== null && value !== undefined) body.append(name, value);
  let response;
  try {
    response = await fetch(route, {method: "POST", body, signal});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`${file.name}: the service does not answer; see whether it still runs`);
  }
  if (!response.ok) {
    const said = (await response.json().catch(() => ({}))).detail ?? response.statusText;
    throw new Error(`${file.name}: ${typeof said === "string" ? said : JSON.stringify(said)}`);
  }
  return response;
}

// DICOM objects of a DICOM series, by what they are; the series is predicted again.
export async function dicomObjects(file, fields) {
  const response = await sent("predict_multitask", file, {...fields, dicom: true, arrays: false});
  const given = Object.entries((await response.json()).objects).filter(([, data]) => data);
  return given.map(([kind, data]) => [kind, new Blob([Uint8Array.from(atob(data), letter => letter.charCodeAt(0))])]);
}

// Ask a question about a file; `progress` hears how far it is. The last message is the answer.
export async function ask(route, file, fields, progress, signal) {
  const response = await sent(route, file, fields, signal);
  for await (const message of messages(response)) {
    if (message.stage === "refused") throw new Error(message.detail);
    if (message.stage === "done") return message;
    progress(message);
  }
  throw new Error(`${file.name}: the service failed; its log says why`);
}
