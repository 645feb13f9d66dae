// The token: from the address (`#token=...`, once) or typed in, kept for this tab alone.
import { Api } from "./api.js";
import { el } from "./dom.js";
import { showError } from "./table.js";

const KEY = "convoy.token";
const IN_ADDRESS = /^#token=([^&]*)(?:&view=(.*))?$/;

export const stored = () => sessionStorage.getItem(KEY);
export const store = (token) => sessionStorage.setItem(KEY, token);
export const forget = () => sessionStorage.removeItem(KEY);

// Takes a token out of the address, so that it is in no history and no bookmark. True if there was one.
export function takeFromAddress() {
  const found = IN_ADDRESS.exec(location.hash);
  if (!found) return false;
  store(decoded(found[1]).trim());
  history.replaceState(null, "", `${location.pathname}${location.search}#${decoded(found[2] || "/runs")}`);
  return true;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Who the token belongs to. Throws ApiError, OfflineError.
export const whoIs = (token) => new Api(token).get("tokens/self");

// The form; `refused`: why there is no valid token, if one was tried. `onToken(token, holder)` after a valid one.
export function signInForm(refused, onToken) {
  const field = el("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-help",
  });
  const problem = el("p", { class: "reason", role: "alert", hidden: true });
  showError(problem, refused);
  const button = el("button", { type: "submit", class: "primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    const token = field.value.trim();
    if (!token) return;
    button.disabled = true;
    try {
      const holder = await whoIs(token);
      onToken(token, holder);
    } catch (error) {
      showError(problem, error);
      field.focus();
      field.select();
    } finally {
      button.disabled = false;
    }
  };
  return el(
    "form", { class: "sign-in", on: { submit } },
    el("h1", {}, "Sign in"),
    el("p", { class: "sub", id: "token-help" }, "Paste a token of this server. It is kept for this tab alone. ",
      el("code", {}, "convoy server status"), " prints an address that has it; an admin makes others with ",
      el("code", {}, "convoy token create"), "."),
    problem,
    el("label", { for: "token" }, "Token"),
    el("div", { class: "field" }, field, button),
  );
}
