// The user's credentials, kept for this browser tab.

const KEY = "jobserver.authorization:" + new URL("..", import.meta.url).pathname;

export function authorization() {
  return sessionStorage.getItem(KEY);
}

export function setBasic(user, password) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  sessionStorage.setItem(KEY, "Basic " + btoa(String.fromCharCode(...bytes)));
}

export function setBearer(token) {
  sessionStorage.setItem(KEY, "Bearer " + token);
}

export function clear() {
  sessionStorage.removeItem(KEY);
}
